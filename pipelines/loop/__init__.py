"""What every worker executes; it knows no service."""
