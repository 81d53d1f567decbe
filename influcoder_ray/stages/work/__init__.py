"""What workers do with a unit: pure functions of its rows, and the models that they hold."""
