"""SIUO: safe inputs, unsafe output."""
