-- Make ready what is due. Returns ms until the next falls due.
return move(clock(), 500)
