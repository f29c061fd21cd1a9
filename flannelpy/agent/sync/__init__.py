"""How does the kernel stay as desired? ``reconcile`` is the loop; each book it looks into is a file of its own."""
