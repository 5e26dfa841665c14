"""Commons: real pictures, voices and judges that registry packages ship."""
