"""The two worlds that the course explains: what a program drew, and photographs."""
