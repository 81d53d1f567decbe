"""Submit the rerank stage.

ray job submit --working-dir . -- python jobs/rerank.py --config pipeline.yaml --set rerank.candidates=50
"""

from stage_job import main

if __name__ == "__main__":
    main("rerank")
