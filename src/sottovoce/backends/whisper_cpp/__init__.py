"""`.bin` files of whisper.cpp."""
