"""End-to-end CTC speech recognition that people can train, trust and understand."""

__version__ = "0.1.0"
