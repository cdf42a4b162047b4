"""What lmms-eval sees: the plugin, the tasks, the model wrapper, the judges and the report."""
