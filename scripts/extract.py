"""The same as `hf-ssl extract`."""

from hf_ssl.commands import program

if __name__ == "__main__":
    program("extract")
