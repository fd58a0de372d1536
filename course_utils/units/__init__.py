"""What single units of a network answer to, and want to see."""
