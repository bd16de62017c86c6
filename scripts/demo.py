"""The same as `hf-ssl demo`."""

from hf_ssl.commands import program

if __name__ == "__main__":
    program("demo")
