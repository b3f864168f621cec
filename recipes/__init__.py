"""Recipes that ship with koffkit (YAML files beside this one)."""
