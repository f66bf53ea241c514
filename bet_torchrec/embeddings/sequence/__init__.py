"""The unpooled form: a row for each id, as sequence models need them."""
