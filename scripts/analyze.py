"""The same as `hf-ssl analyze`."""

from hf_ssl.commands import program

if __name__ == "__main__":
    program("analyze")
