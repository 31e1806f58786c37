"""Nodes: identity, names, counts, and that the records make the same tree again."""

from __future__ import annotations

import errno
from stat import S_IFDIR, S_IFREG

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_wsfuse.client.tree import Tree
from jupyter_wsfuse.protocol.messages import Attr, Identity


def attr(ino: int, mode: int = S_IFREG, btime: int = 1) -> Attr:
    return Attr(1, ino, mode, 1, 0, 0, 0, 0, 0, 4096, 0, 0, 0, btime)


class Log:
    def __init__(self) -> None:
        self.records: list[tuple] = []

    def record(self, *fields: object) -> None:
        self.records.append(fields)


@pytest.fixture
def tree() -> Tree:
    return Tree()


def known(tree: Tree, parent, name: bytes, ino: int, mode: int = S_IFREG):
    node = tree.intern(attr(ino, mode))
    tree.link(parent, name, node)
    tree.look(node)
    return node


def test_hard_links_are_one_node_with_two_paths(tree: Tree) -> None:
    directory = known(tree, tree.root, b"d", 2, S_IFDIR)
    first = known(tree, tree.root, b"a", 3)
    second = known(tree, directory, b"b", 3)
    assert first is second
    assert first.lookups == 2
    assert tree.path_of(first) == b"a"
    tree.unlink(tree.root, b"a")
    assert tree.path_of(first) == b"d/b"
    tree.unlink(directory, b"b")
    assert tree.path_of(first) is None
    assert tree.chain(first) == []


def test_a_node_number_is_never_used_twice(tree: Tree) -> None:
    first = known(tree, tree.root, b"a", 3)
    tree.forget(first.id, 1)
    assert first.id not in tree.nodes
    assert b"a" not in tree.root.children
    again = known(tree, tree.root, b"a", 3)
    assert again.id > first.id
    with pytest.raises(OSError) as caught:
        tree.get(first.id)
    assert caught.value.errno == errno.ESTALE


def test_the_same_inode_number_with_another_birth_or_type_is_another_file(tree: Tree) -> None:
    first = tree.intern(attr(3, btime=1))
    assert tree.intern(attr(3, btime=2)) is not first
    assert tree.intern(attr(3, S_IFDIR, btime=1)) is not first


def test_another_file_under_a_name_replaces_the_one_that_was_there(tree: Tree) -> None:
    old = known(tree, tree.root, b"a", 3)
    new = known(tree, tree.root, b"a", 4)
    assert tree.root.children[b"a"] is new
    assert tree.path_of(old) is None
    assert old.id in tree.nodes


def test_paths_have_the_prefix() -> None:
    tree = Tree(b"sub/dir")
    assert tree.path_of(tree.root) == b"sub/dir"
    assert tree.path_of(known(tree, tree.root, b"\xff", 2)) == b"sub/dir/\xff"


def test_a_directory_is_forgotten_with_its_last_child(tree: Tree) -> None:
    dropped = []
    tree.on_drop = dropped.append
    upper = known(tree, tree.root, b"u", 2, S_IFDIR)
    lower = known(tree, upper, b"l", 3, S_IFDIR)
    leaf = known(tree, lower, b"f", 4)
    tree.forget(upper.id, 1)
    tree.forget(lower.id, 1)
    assert len(tree) == 4
    assert tree.path_of(leaf) == b"u/l/f"
    tree.forget(leaf.id, 5)
    assert dropped == [leaf, lower, upper]
    assert len(tree) == 1
    tree.forget(1, 3)  # the root stays
    tree.forget(77, 1)
    assert len(tree) == 1


def test_a_moved_directory_has_its_new_name_only_and_takes_its_children_along(tree: Tree) -> None:
    here = known(tree, tree.root, b"here", 2, S_IFDIR)
    there = known(tree, tree.root, b"there", 3, S_IFDIR)
    moved = known(tree, here, b"d", 4, S_IFDIR)
    leaf = known(tree, moved, b"f", 5)
    tree.link(there, b"e", moved)
    assert tree.path_of(leaf) == b"there/e/f"
    assert here.children == {}
    assert [step[1] for step in tree.chain(leaf)] == [b"there", b"e", b"f"]
    assert list(tree.depths(leaf)) == [2]


def test_directories_that_others_turned_upside_down_make_no_circle(tree: Tree) -> None:
    upper = known(tree, tree.root, b"u", 2, S_IFDIR)
    middle = known(tree, upper, b"m", 3, S_IFDIR)
    lower = known(tree, middle, b"l", 4, S_IFDIR)
    tree.link(lower, b"u", upper)  # what we know cannot be: somebody moved middle out of upper before
    assert tree.path_of(lower) is None
    tree.link(tree.root, b"m", middle)
    assert tree.path_of(upper) == b"m/l/u"


def test_nonsense_of_a_hostile_server_is_passed_over(tree: Tree) -> None:
    directory = known(tree, tree.root, b"d", 2, S_IFDIR)
    tree.link(directory, b"self", directory)
    tree.link(directory, b"root", tree.root)
    assert tree.path_of(directory) == b"d"
    assert tree.path_of(tree.root) == b""
    assert directory.children == {}


def test_a_buried_file_leaves_its_identity_to_another(tree: Tree) -> None:
    old = known(tree, tree.root, b"a", 3)
    tree.link(tree.root, b"b", old)
    tree.bury(old)
    tree.bury(old)
    assert tree.path_of(old) is None
    new = known(tree, tree.root, b"a", 3)
    assert new is not old
    tree.forget(old.id, 1)
    assert tree.find(Identity(1, 3, 1)) is new


def test_a_name_in_a_directory_that_is_lost_leads_nowhere(tree: Tree) -> None:
    lost = known(tree, tree.root, b"lost", 2, S_IFDIR)
    node = known(tree, lost, b"a", 3)
    known(tree, tree.root, b"b", 3)
    tree.unlink(tree.root, b"lost")
    assert tree.path_of(node) == b"b"
    assert [step[1] for step in tree.chain(node)] == [b"b"]


def test_the_root_is_found_by_what_stands_there(tree: Tree) -> None:
    tree.root_is(Identity(1, 9, 1))
    assert tree.find(Identity(1, 9, 1)) is tree.root
    tree.root_is(Identity(1, 10, 1))
    assert tree.find(Identity(1, 9, 1)) is None


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("see"), st.integers(0, 4), st.sampled_from([b"a", b"b", b"c"]), st.integers(2, 12)),
        st.tuples(st.just("unlink"), st.integers(0, 4), st.sampled_from([b"a", b"b", b"c"])),
        st.tuples(st.just("forget"), st.integers(0, 12), st.integers(1, 2)),
        st.tuples(st.just("bury"), st.integers(0, 12)),
    ),
    max_size=60,
)


@given(STEPS)
def test_any_history_keeps_the_tree_true_and_can_be_replayed(steps: list[tuple]) -> None:
    log = Log()
    tree = Tree(b"", log)
    for step in steps:
        directories = [node for node in tree.nodes.values() if node.type == S_IFDIR]
        nodes = list(tree.nodes.values())
        if step[0] == "see":
            _, where, name, ino = step
            known(tree, directories[where % len(directories)], name, ino, S_IFDIR if ino % 2 else S_IFREG)
        elif step[0] == "unlink":
            tree.unlink(directories[step[1] % len(directories)], step[2])
        elif step[0] == "forget":
            tree.forget(nodes[step[1] % len(nodes)].id, step[2])
        elif nodes[step[1] % len(nodes)] is not tree.root:
            tree.bury(nodes[step[1] % len(nodes)])
        for node in tree.nodes.values():
            for name, child in node.children.items():
                assert (node, name) in child.names
                assert tree.nodes[child.id] is child
            for parent, name in node.names:
                assert parent.children[name] is node
                assert tree.nodes[parent.id] is parent
            assert node.type != S_IFDIR or len(node.names) <= 1
            tree.path_of(node)  # comes to an end
    copies = [Tree(), Tree(), Tree()]
    for record in log.records:
        assert copies[0].apply(record[0], record[1:])
    for copy, source in ((copies[1], tree), (copies[2], copies[0])):
        for record in source.snapshot():
            assert copy.apply(record[0], record[1:])
    told = {id: node for id, node in tree.nodes.items() if node.lookups}
    for copy in copies:
        assert {id: (n.identity, n.lookups, n.gone, tree_path(copy, n)) for id, n in copy.nodes.items()} == {
            id: (n.identity, n.lookups, n.gone, tree_path(tree, n)) for id, n in tree.nodes.items()
        }
        assert all(
            copy.path_of(copy.get(id)) is not None for id in told if tree.path_of(tree.get(id)) is not None
        )


def tree_path(tree: Tree, node) -> set[bytes]:
    return {name for _, name in node.names}


def test_records_about_unknown_nodes_are_passed_over(tree: Tree) -> None:
    assert tree.apply("node", (2, 1, 7, 1, S_IFREG))
    assert tree.apply("node", (2, 1, 7, 1, S_IFREG))
    tree.forget(2, 1)
    for record in (("name", 5, b"a", 6), ("unname", 5, b"a"), ("look", 5, 1), ("forget", 5, 1), ("gone", 5)):
        assert tree.apply(record[0], record[1:])
    assert not tree.apply("something", (1,))
    assert not tree.apply("nothing", ())
    assert len(tree) == 1


def test_numbers_go_on_after_a_restart(tree: Tree) -> None:
    node = known(tree, tree.root, b"a", 3)
    tree.forget(node.id, 1)
    copy = Tree()
    for record in tree.snapshot():
        copy.apply(record[0], record[1:])
    assert known(copy, copy.root, b"a", 3).id > node.id


def test_ten_thousand_deep_is_no_deeper_than_one(tree: Tree) -> None:
    node = tree.root
    for level in range(10_000):
        node = known(tree, node, b"d", level + 2, S_IFDIR)
    assert tree.path_of(node) == b"/".join([b"d"] * 10_000)
    for id in list(tree.nodes):
        tree.forget(id, 1)
    assert len(tree) == 1
