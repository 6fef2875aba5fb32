"""``python -m occ_llm.cli`` is ``occ``."""

from .main import main

if __name__ == "__main__":
    main()
