"""The same as `hf-ssl simulate`."""

from hf_ssl.commands import program

if __name__ == "__main__":
    program("simulate")
