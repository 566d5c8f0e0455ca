"""The page: HTML, CSS and JavaScript that show the service in a browser, and what serves them."""
