"""The same as `hf-ssl study`."""

from hf_ssl.commands import program

if __name__ == "__main__":
    program("study")
