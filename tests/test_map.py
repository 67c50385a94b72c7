"""The map in redlite/README.md has every source file, with what the file says of itself."""
import map_of_files


def test_the_map_is_up_to_date():
    text = map_of_files.MAP.read_text(encoding="utf-8")
    section = map_of_files.START + text.partition(map_of_files.START)[2]
    assert section == map_of_files.files_section(), "run python tests/helpers/map_of_files.py"


def test_every_folder_is_on_the_map():
    found = {path.parent for path in (map_of_files.ROOT / "redlite").glob("**/*.py")}
    folders = {str(path.relative_to(map_of_files.ROOT)) for path in found}
    own = {folder for folder in folders if not folder.startswith(("redlite/kernels", "redlite/data"))}
    assert own <= set(map_of_files.FOLDERS)
