"""The commands of the command line: options and their help; what they do is imported when they run."""
