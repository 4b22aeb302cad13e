"""What the commands do, from Python: fit, load and Model, which `import ssr` offers."""
