"""Speech recognizers and what is known of each family."""
