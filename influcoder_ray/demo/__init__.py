"""The demo: a corpus that every machine with Python has, two small models, and a run over them."""
