"""The pages that people look at. They show what the REST interface answers and know nothing besides."""
