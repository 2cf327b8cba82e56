"""The command `sottovoce`."""
