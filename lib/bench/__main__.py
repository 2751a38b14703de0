"""python -m lib.bench"""

from lib.bench.speed import main

if __name__ == "__main__":
    main()
