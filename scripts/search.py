"""The same as `hf-ssl search`."""

from hf_ssl.commands import program

if __name__ == "__main__":
    program("search")
