"""From a fixed-point model to C99 for microcontrollers."""
