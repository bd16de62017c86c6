"""`python -m hf_ssl COMMAND`, the same as `hf-ssl COMMAND`; for `accelerate launch -m hf_ssl pretrain ...`."""

from hf_ssl.commands import program

if __name__ == "__main__":
    program()
