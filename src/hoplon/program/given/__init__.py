"""What people give: data and example calls, in their own forms."""
