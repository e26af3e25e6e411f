"""The command of a field: tasks, each with a table of methods, run cell by cell.

A field is a folder with a file for each task. A task names its measures and methods and opens its data and teachers.
The command trains a cell for each method and seed, and the student alone again at the cost of methods that cost more;
it reports after every cell. `experiments.kit.rows` is for methods whose seeds are trained as one program.

============  ======================================================================================================
`task`        `Task`, `Method`, `Measure`, `Figure`, `Work`, `Training`: what a task defines
`run`         the command: `Config`, cells that are run once and resumed, workers
`report`      the table, the page and the numbers, from the cells
`plots`       gains with paired intervals, and learning curves
`networks`    a distiller with its optimizer; `trained_once`: a teacher that all methods share
`minilm`      a pretrained encoder of sentences, its tokenizer and its embeddings
============  ======================================================================================================
"""
