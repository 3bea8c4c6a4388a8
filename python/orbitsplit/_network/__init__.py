"""Networks of nodes and links, and conditions of links over time."""
