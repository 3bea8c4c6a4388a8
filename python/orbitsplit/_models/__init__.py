"""Models of transformers: their sources, their structure, and stages of them."""
