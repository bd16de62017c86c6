"""The same as `hf-ssl publish`."""

from hf_ssl.commands import program

if __name__ == "__main__":
    program("publish")
