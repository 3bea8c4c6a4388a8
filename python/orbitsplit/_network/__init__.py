"""Networks of nodes and links, and conditions of links that change while a pipeline runs."""
