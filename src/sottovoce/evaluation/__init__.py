"""From recordings to words, and how good the words are."""
