"""Other runtimes: writers of their files, and the runtimes themselves."""
