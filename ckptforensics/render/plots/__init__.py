"""Documents as drawings, by matplotlib where it is installed."""
