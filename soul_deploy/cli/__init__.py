"""The command line: each module parses, calls one public function, and prints."""
