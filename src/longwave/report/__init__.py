"""Tables and plots of what evaluation measured."""
