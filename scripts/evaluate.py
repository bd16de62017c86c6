"""The same as `hf-ssl evaluate`."""

from hf_ssl.commands import program

if __name__ == "__main__":
    program("evaluate")
