"""The same as `hf-ssl views`."""

from hf_ssl.commands import program

if __name__ == "__main__":
    program("views")
