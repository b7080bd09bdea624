"""What the benchmarks and the generated pages share; the commands are the files beside this folder."""
