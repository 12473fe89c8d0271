"""Languages of source files, by ending or by whole name."""

_BY_LANGUAGE = {
    "Ada": ".adb .ads", "Assembly": ".asm .s", "Awk": ".awk", "Batch": ".bat .cmd", "C": ".c .h", "C#": ".cs",
    "C++": ".cc .cpp .cxx .hh .hpp .hxx .ipp", "CMake": ".cmake CMakeLists.txt", "COBOL": ".cob .cbl",
    "CSS": ".css .scss .sass .less", "Clojure": ".clj .cljs .cljc .edn", "CoffeeScript": ".coffee", "Common Lisp": ".lisp .lsp",
    "Coq": ".v", "Crystal": ".cr", "CUDA": ".cu .cuh", "D": ".d", "Dart": ".dart", "Dockerfile": ".dockerfile Dockerfile",
    "Elixir": ".ex .exs", "Elm": ".elm", "Emacs Lisp": ".el", "Erlang": ".erl .hrl", "F#": ".fs .fsi .fsx",
    "Fortran": ".f .f03 .f08 .f77 .f90 .f95 .for", "GLSL": ".glsl .vert .frag", "Go": ".go", "GraphQL": ".graphql .gql",
    "Groovy": ".groovy .gradle", "HTML": ".html .htm .xhtml", "Haskell": ".hs .lhs", "HCL": ".hcl .tf", "Idris": ".idr",
    "INI": ".ini .cfg", "Isabelle": ".thy", "JSON": ".json", "Java": ".java", "JavaScript": ".js .jsx .mjs .cjs",
    "Julia": ".jl", "Jupyter Notebook": ".ipynb", "Kotlin": ".kt .kts", "Lean": ".lean", "Lua": ".lua",
    "Makefile": ".mk .mak Makefile makefile GNUmakefile", "Markdown": ".md .markdown", "Mathematica": ".wl .wls",
    "MATLAB": ".m", "Nim": ".nim", "Nix": ".nix", "OCaml": ".ml .mli", "Objective-C++": ".mm", "PHP": ".php",
    "Pascal": ".pas .pp", "Perl": ".pl .pm .pod .t", "PowerShell": ".ps1 .psm1", "Prolog": ".pro", "Protocol Buffer": ".proto",
    "Python": ".py .pyi .pyx .pxd", "R": ".r", "Racket": ".rkt", "reStructuredText": ".rst",
    "Ruby": ".rb .rake .gemspec Rakefile Gemfile", "Rust": ".rs", "SQL": ".sql", "Scala": ".scala .sc", "Scheme": ".scm .ss",
    "Shell": ".sh .bash .zsh .fish .ksh", "Solidity": ".sol", "Standard ML": ".sml .sig", "Svelte": ".svelte",
    "Swift": ".swift", "SystemVerilog": ".sv .svh", "TOML": ".toml", "Tcl": ".tcl", "TeX": ".tex .sty .cls .bib",
    "Text": ".txt", "TypeScript": ".ts .tsx .mts .cts", "VHDL": ".vhd .vhdl", "Vim Script": ".vim", "Visual Basic": ".vb .vbs",
    "Vue": ".vue", "XML": ".xml .xsd .xsl .xslt", "YAML": ".yaml .yml", "Zig": ".zig",
}  # fmt: skip
LANGUAGES = {ending: language for language, endings in _BY_LANGUAGE.items() for ending in endings.split()}
"""Ending (with its dot, in small letters) or whole name to language. One ending has one language: .h is C, .m MATLAB, .v Coq."""


def language_of(name: str) -> str | None:
    """Of a file by its name; None: not known."""
    base = name.rsplit("/", 1)[-1]
    dot = base.rfind(".")
    return LANGUAGES.get(base) or (LANGUAGES.get(base[dot:].lower()) if dot >= 0 else None)
