"""Problems as arrays, their exact solution, and what explains one. Knows neither models nor codecs."""
