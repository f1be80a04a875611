"""Does the music follow its prompt? Tempo, key and instruments of a clip against those of its prompt."""
