"""The Hugging Face Hub as a place to put results."""
