"""What looks at a run while it trains, and changes nothing of what is trained."""
