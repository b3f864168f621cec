"""Damaged and hostile input: whatever is read ends in a result or in an error of ours."""
