"""Plots as inline SVG: stacked bars, grouped bars and lines, in colours that the page sets for light and dark."""
