"""What a run would do, said before it is done."""
