"""Documents as pages, by jinja2 with every value escaped."""
